"""Mixtures published as constants: weights of training tokens as printed, before normalisation.

Sources:
    LLaMA on RedPajama: Touvron et al., arXiv 2302.13971, table 1, in RedPajama's domains as the
        configuration `rp_baseline` of github.com/sangmichaelxie/doremi (MIT) gives it.
    DoReMi on the Pile: Xie et al., arXiv 2305.10429, table 8 (280M, vocabulary of 256k tokens).
    RegMix on the Pile: Liu et al., arXiv 2407.01492, `mixture_config/config_1b/regmix.yaml` of
        github.com/sail-sg/regmix (MIT).
"""

LLAMA_REDPAJAMA = {
    "common_crawl": 0.7256,
    "c4": 0.1446,
    "github": 0.0488,
    "wikipedia": 0.0198,
    "book": 0.0215,
    "arxiv": 0.0231,
    "stackexchange": 0.0165,
}

DOREMI_PILE = {
    "Pile-CC": 0.6057,
    "PubMed Central": 0.0046,
    "Books3": 0.0224,
    "OpenWebText2": 0.1019,
    "ArXiv": 0.0036,
    "Github": 0.0179,
    "FreeLaw": 0.0043,
    "StackExchange": 0.0153,
    "USPTO Backgrounds": 0.0036,
    "PubMed Abstracts": 0.0113,
    "Gutenberg (PG-19)": 0.0072,
    "OpenSubtitles": 0.0047,
    "Wikipedia (en)": 0.0699,
    "DM Mathematics": 0.0018,
    "Ubuntu IRC": 0.0093,
    "BookCorpus2": 0.0061,
    "EuroParl": 0.0062,
    "HackerNews": 0.0134,
    "YoutubeSubtitles": 0.0502,
    "PhilPapers": 0.0274,
    "NIH ExPorter": 0.0063,
    "Enron Emails": 0.0070,
}

REGMIX_PILE = {
    "ArXiv": 0.0012046169821426883,
    "FreeLaw": 0.001454510048554701,
    "NIH ExPorter": 0.001231640306882902,
    "PubMed Central": 0.003108561825532002,
    "Wikipedia (en)": 0.01593264140324679,
    "DM Mathematics": 0.00031106907908634156,
    "Github": 0.00022861228152440253,
    "PhilPapers": 1.329107360676338e-05,
    "StackExchange": 0.00029547405933203174,
    "Enron Emails": 0.0016691646199353991,
    "Gutenberg (PG-19)": 0.001612531300038395,
    "Pile-CC": 0.8701291419934237,
    "Ubuntu IRC": 0.06417728505869834,
    "EuroParl": 2.9166170357771267e-06,
    "HackerNews": 0.011925517591888925,
    "PubMed Abstracts": 0.02424425081714838,
    "USPTO Backgrounds": 0.0024587749419225434,
}

OTHER_NAMES = {
    "cc": "commoncrawl",
    "books": "book",
    "wiki": "wikipedia",
    "wikipediaen": "wikipedia",
    "pg19": "gutenbergpg19",
    "gutenberg": "gutenbergpg19",
}
"""Spellings, in small letters and digits, that mean another one."""
