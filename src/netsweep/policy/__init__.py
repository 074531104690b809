"""Who owns a name, what ties a rule to it, and what follows for the rule. No I/O."""
