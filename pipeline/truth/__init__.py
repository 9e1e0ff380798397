"""Label methods held against sources whose entropies are known: what is near the truth, and by how much."""
