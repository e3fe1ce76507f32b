"""Training functions on trl and peft: supervised fine-tuning, reward models, DPO, and a small tokenizer.

Import the function you need from its module, for example `from alignstar.train.sft import train_sft`.
"""
