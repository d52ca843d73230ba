"""What in-context learning learns: task recognition apart from task learning.

Pan, Gao, Chen, Chen: "What In-Context Learning 'Learns' In-Context: Disentangling Task Recognition and Task Learning"
(Findings of ACL 2023, arXiv 2305.09731); official code princeton-nlp/WhatICLLearns.

The same demonstrations are shown with their own labels (GOLD: recognition and learning help), with labels drawn at random
(RANDOM: only recognition can help) and with made-up labels in their place (ABSTRACT: only learning can help).

    draws      what is drawn for a test row: demonstrations, random labels, the map to made-up labels
    prompts    data sets and templates as data, and how a prompt is put together
    predict    prompts of any setting -> scores of the label words -> the table of predictions, and what stops a run
    metrics    metrics from that table, without the model
    decoder    the small decoder of the embedded runs
    experiment the experiments: pre-train or load models, evaluate every setting

`draws`, `prompts` and `metrics` need no torch.
"""
