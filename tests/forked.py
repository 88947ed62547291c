"""Processes of tests, forked from one that has imported what they need: importing torch takes a process seconds."""

import multiprocessing

# One server for all tests of a pytest: the first process asked for starts it, with these modules. It computes nothing,
# so that it has no threads, which a fork would lose. Of a module that cannot be imported here it says nothing.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "torch._dynamo", "simclr_fast.training.pretrain", "tests.gloo_ranks"])
