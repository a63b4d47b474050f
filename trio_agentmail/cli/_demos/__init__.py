"""The demos: `trio-agentmail demo` breaks connections, `trio-agentmail demo --crash` kills processes.

Each runs a script of failures (`outages`, `crashes`), records what it does and what it observes, and judges this record
at the end (`outages_verdict`, `crashes_verdict`).
"""
