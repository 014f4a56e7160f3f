"""The code that `pkm export` puts beside the weights: nothing here imports the rest of the project.

pkm_model.py is the whole model in plain PyTorch; configuration_pkm.py and modeling_pkm.py make it a model of
`transformers`, lm_eval_pkm.py one of `lm-eval`. The last three need those libraries, the product does not.
"""
