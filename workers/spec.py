"""What every group of settings has in common: frozen, strict, complete, its descriptions its docstrings."""

from __future__ import annotations

from typing import NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError


class Spec(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def impossible(key: str, value: object, sentence: str) -> NoReturn:
    """Raise a mistake at `key` of the group that is being validated, so that its path names the value."""
    # The sentence goes in as a value: as the template itself, its braces would be read as names.
    mistake = PydanticCustomError("impossible", "{sentence}", {"sentence": sentence})
    raise ValidationError.from_exception_data(
        "job", [InitErrorDetails(type=mistake, loc=(key,), input=value)]
    )
