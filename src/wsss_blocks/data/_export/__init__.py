"""Write masks in the formats of other tools: a module per format."""
