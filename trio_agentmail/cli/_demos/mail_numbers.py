"""The numbers that the demos give their mail: 1, 2, 3, …"""

from trio_agentmail.events import MessageReceivedEvent

__all__ = ["mail_number", "number_of", "ranges"]


def number_of(message_id: str) -> int:
    """Return the number in a Message-ID of the demos: `<7@demo.example>` is 7."""
    return int(message_id.strip("<>").partition("@")[0])


def mail_number(event: MessageReceivedEvent) -> int:
    """Return the number of a received mail."""
    return number_of(event.message.message_id)


def ranges(numbers: list[int]) -> str:
    """Format numbers as ranges: `1 to 3, 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
