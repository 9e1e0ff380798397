"""Label methods, and the transfer of labels between tokenizers.

Each method's module has a function `token_entropies(model, input_ids[B, T], ...) -> [B, T]`. Labels are in nats. Only
attribution's scores have no unit.
"""
