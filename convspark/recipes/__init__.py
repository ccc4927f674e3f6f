"""The paper's settings and ours, one file a run: `convspark pretrain IMAGES --config FILE`."""
