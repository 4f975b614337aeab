"""The benchmark: what evaluation costs here, beside plain ``vmap``, pure inference and peers.

`command` prints, and everything else returns rows.
"""
