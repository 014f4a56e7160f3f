"""The wire: protocol buffer definitions and the Python generated from them (`make protos`)."""
