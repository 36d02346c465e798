"""Loop-level transcriptions of the equations; they import nothing from wsss_blocks."""
