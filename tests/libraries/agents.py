"""Agents, and what they are made with: models of the tests' own, and a server over stdio."""

from .library import Library

PYDANTIC_AI = """
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

agent = Agent(TestModel(), deps_type=float)

@agent.tool
async def look_up(ctx) -> str:
    return await wait(ctx.deps)
"""

OPENAI_AGENTS = """
from agents import Agent, ModelResponse, Runner, Usage, set_tracing_disabled
from agents.models.interface import Model
from openai.types.responses import ResponseOutputMessage, ResponseOutputText

set_tracing_disabled(True)

class Waits(Model):
    async def get_response(self, **asked):
        waited = await wait(float(asked["input"][0]["content"]))
        text = ResponseOutputText(type="output_text", text=waited, annotations=[])
        message = ResponseOutputMessage(id="1", type="message", role="assistant", status="completed", content=[text])
        return ModelResponse(output=[message], usage=Usage(), response_id=None)

    def stream_response(self, *args, **kwargs):
        raise NotImplementedError

def use(seconds):
    return Runner.run_sync(Agent("waits", model=Waits()), str(seconds)).final_output
"""

LLAMA_INDEX = """
from llama_index.core import Document, SummaryIndex
from llama_index.core.async_utils import asyncio_run
from llama_index.core.llms import CompletionResponse, MockLLM

waits_for = [0]

class Waits(MockLLM):
    async def acomplete(self, prompt, formatted=False, **kwargs):
        return CompletionResponse(text=await wait(waits_for[-1]))

index = SummaryIndex.from_documents([Document(text="one"), Document(text="two")])
"""

MCP = """
import contextlib, pathlib, textwrap
import mcp
from mcp.client.stdio import stdio_client

path = pathlib.Path("FOLDER", "server.py")
path.write_text(textwrap.dedent('''
    import asyncio
    from mcp.server import MCPServer

    server = MCPServer("waits")

    @server.tool()
    async def wait(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "waited"

    server.run("stdio")
'''))
parameters = mcp.StdioServerParameters(command=sys.executable, args=[str(path)])

def server():
    # ipykernel's sys.stderr may be no file that a process can write to
    return stdio_client(parameters, errlog=sys.__stderr__)
"""

LIBRARIES = {
    "pydantic-ai": Library(
        package="pydantic-ai-slim",
        does="`Agent.run_sync`",
        setup=PYDANTIC_AI + "\ndef use(seconds):\n    return agent.run_sync('hello', deps=seconds).output",
        gives='{"look_up":"waited"}',
        by=("%%thread", "the patch"),
    ),
    "pydantic-ai, its stream": Library(
        package="pydantic-ai-slim",
        does="`Agent.run_stream_sync`",
        setup=PYDANTIC_AI + "\ndef use(seconds):\n    return agent.run_stream_sync('hello', deps=seconds).get_output()",
        gives='{"look_up":"waited"}',
        by=("%%thread",),
    ),
    "pydantic-ai, async": Library(
        package="pydantic-ai-slim",
        does="`Agent.run`",
        setup=PYDANTIC_AI + "\nasync def use(seconds):\n    return (await agent.run('hello', deps=seconds)).output",
        gives='{"look_up":"waited"}',
        by=("run", "%%thread", "the patch"),
        asynchronous=True,
    ),
    "openai-agents": Library(
        package="openai-agents",
        does="`Runner.run_sync`",
        setup=OPENAI_AGENTS,
        gives="waited",
        by=("%%thread",),
    ),
    "llama-index": Library(
        package="llama-index-core",
        does="`asyncio_run`",
        setup=LLAMA_INDEX + "\ndef use(seconds):\n    return asyncio_run(wait(seconds))",
        gives="waited",
        by=("%%thread",),
    ),
    "llama-index, a query": Library(
        package="llama-index-core",
        does="a query engine with `use_async=True`",
        setup=LLAMA_INDEX
        + """
def use(seconds):
    waits_for.append(seconds)
    engine = index.as_query_engine(llm=Waits(), response_mode="accumulate", use_async=True)
    return str(engine.query("what is there?")).count("waited")
""",
        gives=2,
        by=("%%thread",),
    ),
    "MCP": Library(
        package="mcp",
        does="a client over stdio, one for each call",
        setup=MCP
        + """
async def use(seconds):
    async with mcp.Client(server()) as client:
        return (await client.call_tool("wait", {"seconds": seconds})).content[0].text
""",
        gives="waited",
        by=("run", "%%thread", "the patch"),
        asynchronous=True,
        cleans_up=False,
    ),
    "MCP, over several cells": Library(
        package="mcp",
        does="a client over stdio that `enter` keeps open",
        setup=MCP
        + """
from ipyportal import enter

opened = contextlib.ExitStack()
client = opened.enter_context(enter(mcp.Client(server()), on="loop"))

async def use(seconds):
    return (await client.call_tool("wait", {"seconds": seconds})).content[0].text
""",
        gives="waited",
        by=('run(on="loop")',),
        asynchronous=True,
        cleans_up=False,
        ends="opened.close()",
    ),
    "langgraph": Library(
        package="langgraph",
        does="`ainvoke` of a graph with async nodes",
        setup="""
from typing import TypedDict
from langgraph.graph import END, START, StateGraph

class State(TypedDict):
    seconds: float
    said: str

async def node(state):
    return {"said": await wait(state["seconds"])}

graph = StateGraph(State).add_node("node", node).add_edge(START, "node").add_edge("node", END).compile()

async def use(seconds):
    return (await graph.ainvoke({"seconds": seconds, "said": ""}))["said"]
""",
        gives="waited",
        by=("run", "%%thread", "the patch"),
        asynchronous=True,
    ),
}
