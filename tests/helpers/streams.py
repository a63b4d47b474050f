"""Streams without recovery, which has tests of its own."""

from functools import partial

import trio_agentmail

__all__ = ["open_agentmail_session", "open_agentmail_stream"]

open_agentmail_stream = partial(trio_agentmail.open_agentmail_stream, recovery=None)
open_agentmail_session = partial(trio_agentmail.open_agentmail_session, recovery=None)
