"""Label methods, and the transfer of labels between tokenizers.

Each method's module has a function `token_entropies(model, input_ids[B, T], ...)`, which returns labels [B, T]. The
function of `second_order` returns two such tensors. Labels are in nats, except the scores of `attribution`, which have
no unit.
"""
