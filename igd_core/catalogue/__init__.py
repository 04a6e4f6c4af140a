"""Items and how they are spelled: token paths of titles, their prefix tree and its gain, attributes, prompts."""
