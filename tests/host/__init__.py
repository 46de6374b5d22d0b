"""Tests against real ComfyUI servers.

The server is a process of its own, with an interpreter of its own: the tests speak to it over HTTP as a browser does,
and read tensors back from files that the probe nodes beside them (`probes/`) write. Nothing of the host is imported
into the test process, so that the host and the diffusers modules it is compared with may live in two environments.
"""
