"""The benchmark: what evaluation costs here, beside plain ``vmap``, pure inference and peers.

It returns rows and prints nothing; ``tinkering bench`` shows them.
"""
