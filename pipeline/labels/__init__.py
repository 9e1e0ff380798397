"""Label methods, and the transfer of labels between tokenizers.

Each method's file has a function `token_entropies(model, input_ids[B, T], ...) -> [B, T]`. Labels are in nats, except
attribution's scores, which have no unit.
"""
