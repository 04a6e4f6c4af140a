"""From two exports to a served verdict: the stages in their order, each a command that there is anyway."""
