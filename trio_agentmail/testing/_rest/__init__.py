"""The REST API: what each call answers, and what becomes of mail that is sent.

`api.py` is where to begin; it says which module answers a request.
"""
