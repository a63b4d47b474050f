"""The exception for an invalid command to the emulator."""

__all__ = ["InvalidCommand"]


class InvalidCommand(Exception):
    """A command is invalid. It changes nothing, and the response has this HTTP status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
