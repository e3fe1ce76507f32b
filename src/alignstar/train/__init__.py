"""Training functions: supervised fine-tuning, reward models and DPO on trl and peft, a small tokenizer, value heads.

Import the function you need from its module, for example `from alignstar.train.sft import train_sft`.
"""
