"""The doctor: looks at machine, data, model and rewards before a run does, and says what to do about what is wrong.

``rsgrpo doctor`` starts it; :mod:`recipes.doctor.examination` the list of what is looked at.
"""
