"""Makes `python -m trio_agentmail.cli` the same as the script `trio-agentmail`."""

from . import main

main()
