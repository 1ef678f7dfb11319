"""What the agent lived through and what it made of it: traces, insights, and the store of both."""


class ExperienceError(RuntimeError):
    """A store, a file or an endpoint that cannot be used; the message says why and what to do."""


def damaged_store(reason: str) -> ExperienceError:
    """What to say of a store that holds what nobody has written."""
    return ExperienceError(f"the store is damaged ({reason}): put a whole copy in its place")
