"""Loop transcription of the exponential moving average."""


def ema(values, decay, warmup):
    """Average of a sequence of numbers; the first one is the starting point."""
    average = values[0]
    for step, value in enumerate(values[1:]):
        d = min(decay, (1 + step) / (10 + step)) if warmup else decay
        average = d * average + (1 - d) * value
    return average
