"""Learning rates as specs/dalnet.md 3.8 writes them, step by step."""


def polynomial_rates(base, total, warmup, ratio, power, steps):
    rates = []
    for t in range(steps):
        if t < warmup:
            share = t / warmup
            rates.append(base * ((1 - share) * ratio + share))
        elif t < total:
            rates.append(base * (1 - t / total) ** power)
        else:
            rates.append(0.0)
    return rates
