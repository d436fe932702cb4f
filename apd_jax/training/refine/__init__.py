"""Refinement: moves between steps of training that correct what gradient descent cannot.

Gradient descent rarely moves a whole mechanism between components: on the way, both halves are
needed, and the loss rises. `merge`, `split`, `gather` and `clean` make such a change at once, and
`rounds` undoes it where it did not pay.
"""
