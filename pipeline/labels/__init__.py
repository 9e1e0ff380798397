"""Label methods: each file has one `token_entropies(model, input_ids[B, T], ...) -> [B, T]`, in nats."""
