"""The original README's Python examples, unchanged but for the key, the URL and the model."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Gateway

USAGE = '''
from llmsafespace import Sandbox

# Create a new sandbox with Python runtime
sandbox = Sandbox(
    runtime="python:3.10",
    api_key="your_api_key",
    timeout=300,  # seconds
    use_warm_pool=True  # Use pre-initialized environments for faster startup
)

# Execute code
result = sandbox.run_code("""
import numpy as np
data = np.random.rand(10, 10)
mean = data.mean()
print(f"Mean value: {mean}")
""")

print(result.stdout)  # Access stdout output

# Install packages
sandbox.install("pandas matplotlib")

# Upload files
sandbox.upload_file("data.csv", local_path="./data.csv")

# Execute commands
result = sandbox.run_command("ls -la")

# Stream output in real-time
for output in sandbox.stream_command("python long_task.py"):
    print(output)

# Clean up
sandbox.terminate()
'''

FUNCTION_CALLING = '''
from langchain import OpenAI
from llmsafespace import Sandbox

# Initialize LLM
llm = OpenAI(temperature=0)

# Initialize sandbox
sandbox = Sandbox(runtime="python:3.10", timeout=30)

def execute_code(code):
    """Execute code in sandbox and return result"""
    result = sandbox.run_code(code)
    return {
        "output": result.stdout,
        "error": result.stderr,
        "success": result.exit_code == 0
    }

# LLM generates code
code = llm.generate("Write Python code to calculate the first 10 Fibonacci numbers")

# Execute in sandbox
result = execute_code(code)
print(result["output"])
'''

AGENT = """
from langchain.agents import AgentExecutor, create_react_agent
from langchain.tools import Tool
from langchain.llms import OpenAI
from llmsafespace import Sandbox

# Initialize sandbox
sandbox = Sandbox(runtime="python:3.10", timeout=300)

# Tool for code execution
def run_python_code(code):
    outputs = []
    for output in sandbox.stream_code(code):
        print(output)  # Show real-time output
        outputs.append(output)
    return "".join(outputs)

# Create agent with tools
tools = [
    Tool(
        name="PythonREPL",
        func=run_python_code,
        description="Execute Python code in a secure sandbox"
    )
]

agent = create_react_agent(OpenAI(temperature=0), tools, "You are a helpful AI assistant.")
agent_executor = AgentExecutor(agent=agent, tools=tools, verbose=True)

# Run agent
agent_executor.run("Analyze this dataset and create a visualization")
"""

FIBONACCI = "a, b = 0, 1\nfor _ in range(10):\n    print(a, end=' ')\n    a, b = b, a + b"


class FakeModel:
    """Answers every prompt with a program."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def generate(self, prompt: str) -> str:
        return FIBONACCI


class FakeTool:
    def __init__(self, name: str, func: Callable[[str], str], description: str) -> None:
        self.name, self.func, self.description = name, func, description


class FakeExecutor:
    """An agent that uses its first tool once, and believes what it says."""

    answers: list[str] = []

    def __init__(self, agent: FakeModel, tools: list[FakeTool], verbose: bool) -> None:
        self.agent, self.tools = agent, tools

    def run(self, task: str) -> str:
        self.answers.append(self.tools[0].func(self.agent.generate(task)))
        return self.answers[-1]


@pytest.fixture(autouse=True)
def place(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMSAFESPACE_API_URL", gateway.url)
    monkeypatch.setenv("LLMSAFESPACE_API_KEY", gateway.admin_key)
    monkeypatch.chdir(tmp_path)
    Path("data.csv").write_text("a,b\n1,2\n")
    modules: dict[str, dict[str, Any]] = {
        "langchain": {"OpenAI": FakeModel},
        "langchain.agents": {
            "AgentExecutor": FakeExecutor,
            "create_react_agent": lambda model, tools, prompt: model,
        },
        "langchain.tools": {"Tool": FakeTool},
        "langchain.llms": {"OpenAI": FakeModel},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    try:
        exec(compile(code, "example", "exec"), names)
    finally:
        if "sandbox" in names:
            names["sandbox"].terminate()
    return names


@pytest.mark.filterwarnings("ignore::llmsafespace.SandboxWarning")
def test_usage(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    names = run(USAGE.replace("your_api_key", gateway.admin_key))
    out = capsys.readouterr().out
    assert "Mean value: 0." in out
    assert "data.csv" in names["result"].stdout
    assert "long_task.py" in out  # python says that there is no such file: the example does not upload it


@pytest.mark.filterwarnings("ignore::llmsafespace.SandboxWarning")
def test_function_calling(capsys: pytest.CaptureFixture[str]) -> None:
    names = run(FUNCTION_CALLING)
    assert names["result"] == {"output": "0 1 1 2 3 5 8 13 21 34 ", "error": "", "success": True}
    assert "0 1 1 2 3 5 8 13 21 34" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::llmsafespace.SandboxWarning")
def test_agent_with_streaming_output(capsys: pytest.CaptureFixture[str]) -> None:
    run(AGENT)
    assert FakeExecutor.answers[-1] == "0 1 1 2 3 5 8 13 21 34 "
    assert "34" in capsys.readouterr().out
