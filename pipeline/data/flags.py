"""Checks of settings that come from flags, which several commands share."""


def require_at_least_one(settings: object, *names: str) -> None:
    """Refuses numbers below 1; what is no number, as None or `auto`, passes.

    Raises:
        ValueError: with the flag of the first that is below.
    """
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
