"""Conversational question answering, re-evaluated with the reader's own answers as history.

Li, Gao, Goenka, Chen: "Ditch the Gold Standard: Re-evaluating Conversational Question Answering" (ACL 2022); official code
princeton-nlp/EvalConvQA.

    dialogs        QuAC's format in and out, CANARD's self-contained questions
    data           data sets of conversations, of judgements, of official predictions
    history        earlier turns as text, for coreference models and readers
    coreference    is a question still valid under the reader's own answers, and what did it mean; substitution, pronouns
    rules          the default coreference model; resolvers: all of them by name
    protocols      Auto-Gold, Auto-Pred, Auto-Replace, Auto-Rewrite, filter
    readers        what a reader is; small_reader and training: the embedded runs'; bert, bert_reader, decoding: the paper's
    live           conversations with the oracle user; judgements: the annotation format and its figures
    rankings       agreement of the protocols with live accuracy
    experiment     train readers, run protocols and live conversations; human: the same figures from people's judgements
    chat           question a trained reader in a terminal, and judge it

Only readers with weights and `experiment` need torch.
"""
