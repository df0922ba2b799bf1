"""The run that ideas/vocabulary.md asks about: recipes/stdlib.py on a quarter of its tokens.

nachim data vocab ideas/vocabulary.py --out runs/ideas/vocabulary --sizes 300 512 1024 2048 4096 --held-out-bytes 300000
"""

from __future__ import annotations

from nachim.spec import BPE, WSD, Attention, Data, Decoder, Muon, Run, SwiGLU, Train


def run() -> Run:
    """2 layers x 64 with previous-token keys, Muon, 256 steps of 1,024 tokens where the vocabulary is 512."""
    attention = Attention(n_heads=4, n_kv_heads=4, d_head=16, qk_norm=True, previous_key=True)
    model = Decoder(vocab_size=512, d_model=64, n_layers=2, attention=attention, ffn=SwiGLU(d_ff=168))
    train = Train(tokens=1 << 18, batch_tokens=1024, optimizer=Muon(lr=0.01), schedule=WSD(warmup_tokens=1 << 14))
    return Run(model=model, data=Data(tokenizer=BPE(vocab_size=512), seq_len=128), train=train)
