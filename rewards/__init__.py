"""Rewards: plugins that judge a response, the tokens they may touch, and the scorer that runs them."""
