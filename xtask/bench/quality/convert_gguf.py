"""llama.cpp's convert_hf_to_gguf.py for a tokenizer that it does not know.

    python3 convert_gguf.py LLAMA_CPP_FOLDER PRE_TYPE ARGUMENTS OF convert_hf_to_gguf.py …

The converter recognises tokenizers by a hash of what they make of a test text and refuses unknown ones. Here the
pre-tokenizer type (`qwen2` for the project's own models: the same regular expression) is told instead. Nothing else differs.
"""
import runpy
import sys

folder, pre = sys.argv[1:3]
sys.path.insert(0, folder)
sys.path.insert(1, folder + "/gguf-py")
from conversion.base import TextModel  # noqa: E402

TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
sys.argv = [folder + "/convert_hf_to_gguf.py", *sys.argv[3:]]
runpy.run_path(sys.argv[0], run_name="__main__")
