"""One recommendation: resolved, looked up, admitted, decoded, answered."""
