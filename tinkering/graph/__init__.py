"""A module as steps: what its forward does, captured as operations, fused and in order.

Nothing here computes with many members; `tinkering.layers` says how a step is done for them.
"""
