"""The demos: `trio-agentmail demo` breaks connections, `trio-agentmail demo --crash` kills processes.

Each plays a story (`outages`, `crashes`), keeps a record of what it did and what it observed, and judges that record at
the end (`outages_verdict`, `crashes_verdict`).
"""
