"""What a run writes into its folder: metrics, groups, summary and report."""
