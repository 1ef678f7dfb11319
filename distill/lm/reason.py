"""What an error of somebody else's code says."""


def reason(error: BaseException, max_length: int = 300) -> str:
    """Its first line; at least what it is called."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:max_length]
