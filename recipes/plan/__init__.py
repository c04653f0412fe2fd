"""Know before you pay: memory, time and cost of a run, from its settings, the model's config and the data.

``rsgrpo plan`` starts it; :mod:`recipes.plan.command` puts the parts together.
"""
