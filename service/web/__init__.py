"""The page of a service, and the port that it is served on."""
