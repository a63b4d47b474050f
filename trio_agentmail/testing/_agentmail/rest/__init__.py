"""The REST API: a route table, with a function for each call.

`routes.py` describes the table. To add a call, add a function with its route to the module of its resource.
"""
