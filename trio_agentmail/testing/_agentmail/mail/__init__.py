"""Mail: stored messages and threads, in the order of the listings, and mail in the format of RFC 5322.

Start reading in `store.py`.
"""
