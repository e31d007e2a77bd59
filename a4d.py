import torch, odenet, warnings
warnings.simplefilter('ignore')
from torch import nn
from odenet_torch import convert
import inspect
print(inspect.signature(convert))
torch.set_default_dtype(torch.float64)
class L(nn.Module):
    def __init__(s,log,kind): super().__init__(); s.l=nn.Linear(3,3); s.log=log; s.kind=kind
    def forward(s,x):
        o=torch.tanh(s.l(x))
        if s.kind=='float': s.log.append(float(o.sum()))
        if s.kind=='both': s.log.append(float(o.sum())); o.register_hook(lambda g: s.log.append(g.detach())) if o.requires_grad else 0
        return x+o
class N(nn.Module):
    def __init__(s,log,kind): super().__init__(); s.layers=nn.ModuleList([L(log,kind) for _ in range(4)])
    def forward(s,x):
        for l in s.layers: x=l(x)
        return x
for kind in ('float','both'):
  for g in ('checkpoint','checkpoint:segments=2','discrete-adjoint','checkpoint:bits=16'):
    log=[]
    try:
        m=convert(N(log,kind),'layers',gradient=g)
        o=m(torch.randn(2,3)); a=len(log); o.sum().backward(); print(kind,g,a,len(log), [type(x).__name__[0] for x in log])
    except odenet.OdenetError as e: print(kind,g,type(e).__name__,str(e)[:90])
