"""Which layers of a model to train and where to put a head: hidden-state variability, choices, cutting.

Xie, Qiu, Pasad, Du, Qu and Mei 2022, *Hidden State Variability of Pretrained Language Models Can Guide Computation
Reduction for Transfer Learning* (Findings of EMNLP), arXiv:2210.10041; docs/papers.md says where we differ.
"""
