"""What is wrong with a command to the emulator."""

__all__ = ["InvalidCommand"]


class InvalidCommand(Exception):
    """A command is answered with an HTTP status and a message, and changes nothing."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
