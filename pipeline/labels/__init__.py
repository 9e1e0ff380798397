"""Label methods: each file has one `token_entropies(model, input_ids[B, T], ...) -> [B, T]`, in nats, but for
attribution's scores, which have no unit; and the move of nats from one tokenizer's tokens to another's."""
