"""`python -m trio_agentmail.cli`, where the script `trio-agentmail` is not at hand."""

from . import main

main()
