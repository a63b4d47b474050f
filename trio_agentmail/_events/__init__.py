"""The event classes by topic, each beside the classes of its payload. Users import them from `trio_agentmail.events`.

To add an event type, add its class and the class of its payload to the module of its topic, with their entries in the
module's union, `Literal` and `__all__`, and re-export the event class from `trio_agentmail`. Decoding, encoding,
`make_event`, the fake, the emulator and the CLI follow from the class.
"""
